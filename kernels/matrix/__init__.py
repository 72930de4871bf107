"""The scan in PyTorch's operators: batched matrix products, walks, convolution and norm."""
