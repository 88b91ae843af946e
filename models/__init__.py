"""The methods: plain functions over tensors, free of ComfyUI."""
