"""Training data sets: photos of people or rendered heads in, WebDataset shards out. ComfyUI is not needed."""
