"""An evaluation as one HTML page that needs no other file: `page.as_html`."""
