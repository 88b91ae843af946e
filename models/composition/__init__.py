"""Composition anchors: wanted and measured horizon and subject. Import from the modules."""
