"""Image sets, the batch plan and its loaders."""
