"""Data sets in memory, whole-batch transforms, and loaders. Nothing here needs a GPU or paddle."""
