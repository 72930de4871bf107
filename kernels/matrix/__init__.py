"""The scan in PyTorch's operators: batched matrix products, scan orders, convolution and norm."""
