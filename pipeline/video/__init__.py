"""One video file becomes frames: probe it, choose frames, decode them. No model, no cluster, nothing imported here."""
