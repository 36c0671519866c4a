"""What the vision plugins share: image files, data sets, embedded images, metrics and grids of pictures."""
