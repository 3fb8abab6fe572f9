"""Formats in which data sets are stored: .npz files, directories of tensorflow_datasets, and image files."""
