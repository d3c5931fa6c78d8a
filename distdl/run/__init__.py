"""What lies in runs/NAME, and who may write there."""
