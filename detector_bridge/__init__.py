"""GroundingDINO in a process of its own, and a thin client for it. The two meet at detector.proto."""
