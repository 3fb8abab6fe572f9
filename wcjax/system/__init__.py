"""What programs need from the operating system and from JAX: files, paths, streams, devices, processes."""
