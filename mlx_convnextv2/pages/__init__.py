"""The parts of an HTML page that stands alone: its frame, its text and its pictures."""
