"""What single heads of a text model do: scores, circuits, attributions, and what they read on texts."""
