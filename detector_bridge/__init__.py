"""GroundingDINO in a separate process, and a thin client for it. The two meet at detector.proto."""
