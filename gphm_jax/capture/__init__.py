"""Raw footage -> identity folders: videos, photos, scans and the field's datasets, as the models read them."""
