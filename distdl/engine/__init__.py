"""What turns losses into steps on a mesh: `torch.py` is the reference, `deepspeed.py` the product, `pipeline.py` the
product in stages."""
