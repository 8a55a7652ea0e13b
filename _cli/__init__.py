"""What a terminal shows: progress, tables, sentences. May know every room, and imports one when it needs it."""
