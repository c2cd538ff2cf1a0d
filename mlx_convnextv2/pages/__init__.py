"""What an HTML page is made of, if it is to stand alone: its frame, its text and its pictures."""
