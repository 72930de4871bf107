"""Videos and pictures as frames: decoding, seeking, resizing and the range of pixels."""
