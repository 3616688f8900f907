"""A run on disk: its folder, how it is started, resumed, followed, loaded and exported."""
