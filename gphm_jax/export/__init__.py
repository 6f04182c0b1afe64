"""Avatars in the files of other programs: one file a format, one container that all of them take."""
