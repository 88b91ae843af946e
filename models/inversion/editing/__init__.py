"""Editing a picture from its inversion: guidance, concepts, masks, FlowEdit. Import from the modules."""
