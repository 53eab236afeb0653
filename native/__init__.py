"""The sources of the C kernel, and how it is built."""
