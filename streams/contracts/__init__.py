"""What goes over the wire: events, frames, recommendations, dead letters. Imports nothing else of ours."""
