"""What a run leaves to go on from: written, read, verified and turned into other formats, on any layout."""
