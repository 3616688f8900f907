"""EM's steps, the resumable loop, and the methods that EM is compared with."""
