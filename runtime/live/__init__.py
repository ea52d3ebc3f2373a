"""From a microphone to captions as they come. Imports audio, the engine, subtitles and output; sounddevice where it is
asked for a microphone.
"""
