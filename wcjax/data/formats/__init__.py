"""The forms in which data sets are stored: arrays in an .npz file, prepared by tensorflow_datasets, image files."""
