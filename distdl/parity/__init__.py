"""The proof that every layout trains the same model: short runs on gloo processes against one plain process."""
