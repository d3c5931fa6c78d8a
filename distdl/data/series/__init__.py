"""Series of numbers from files of text: labelled ones as rows of one length, others as windows."""
