"""A head in the browser: pictures drawn here, shown and steered there by viser."""
