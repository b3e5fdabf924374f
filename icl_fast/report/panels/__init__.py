"""What each panel of a report shows, as data."""
