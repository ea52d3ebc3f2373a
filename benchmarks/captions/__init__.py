"""What captions are good for, measured on sounds whose times are known."""
