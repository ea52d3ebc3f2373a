"""Subtitles of sound: sentences -> labels, change points -> onsets, windows -> cues that keep the rules, the track in a
copy of a video. Knows no engine; only `mux` reads and writes files.
"""
