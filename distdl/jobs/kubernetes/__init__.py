"""A run as Kubernetes objects: made, checked before they are sent, followed, and asked how they are."""
