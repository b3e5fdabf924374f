"""What trains, measures and draws to answer a question."""
