"""Data sets to train with: photos of people or painted heads in, WebDataset shards out. ComfyUI is not needed."""
