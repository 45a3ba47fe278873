"""A data set on its way in: fetched, unpacked, checked, indexed."""
