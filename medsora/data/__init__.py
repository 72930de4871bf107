"""Videos in: found (`find`), checked (`check`), split (`split`) and cut into clips (`clips`).

Below that lie frames in and out of files (`video_io`, `decoding`, `frame_folder`) and the procedural
endoscopy that needs no data at all (`phantom`). `python -m medsora.data --help` lists the commands.
"""
