"""Reads and writes moving pictures: video, animations, cameras.

A `Film`, an `Animation` and a `Camera` each yield pictures, as pictures.py
has them, and their times in seconds; a `Recorder` writes both.
"""
import contextlib
import time
from fractions import Fraction

import av
import cv2
import numpy as np
from PIL import ImageSequence
from tqdm import tqdm

from headpose.errors import InputError
from headpose.files import atomic, printable
from headpose.inference.pictures import bgr, picture_errors

URLS = ('http://', 'https://', 'rtsp://', 'rtsps://', 'rtmp://')
USUAL_RATE = 25  # frames a second, of a video that names no rate
TIMEOUT = 10  # seconds without a byte after which a stream has ended
CLOCK = 90_000  # ticks a second, of the times in a written video
# Sound that browsers play in an MP4; other sound is left out.
SOUND = ('aac', 'mp3', 'opus', 'flac', 'alac', 'ac3', 'eac3')


def is_camera(source):
    """Says whether an input is a camera: its number, or a device's path."""
    return source.isdecimal() or source.startswith('/dev/video')


def is_live(source):
    """Says whether an input is no file: a camera or an address."""
    return is_camera(source) or source.startswith(URLS)


def open_moving(source):
    """Opens a camera, an address or a video file.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    return Camera(source) if is_camera(source) else Film(source)


class Moving:
    """Moving pictures; iterating yields pictures and seconds.

    Attributes:
        total: number of frames as far as it is known, or None.
        rate: frames a second, on average.
        sound: an `av.AudioStream`, or None.
        start: seconds on the sound's clock when the video begins.
        sound_packets: packets of sound since the frame before.
    """
    total = sound = None
    rate = USUAL_RATE
    start = 0.0
    sound_packets = ()


class Animation(Moving):
    """An animated GIF, PNG, WebP or AVIF.

    Args:
        path: of the file.
        picture: what `open_picture` returned for it.
    """

    def __init__(self, path, picture):
        self.path = path
        self.picture = picture
        self.total = picture.n_frames

    def __iter__(self):
        """Yields pictures and seconds.

        Raises:
            InputError: the file is damaged from here on.
        """
        seconds = 0.0
        frames = ImageSequence.Iterator(self.picture)
        for _ in range(self.total):
            with picture_errors(self.path):
                image = bgr(next(frames))
                # Browsers show a frame of no duration for a tenth of a second.
                duration = self.picture.info.get('duration') or 100
            yield image, seconds
            seconds += duration / 1000

    def close(self):
        """Closes the file."""
        self.picture.close()


class Camera(Moving):
    """A camera, by its number or its device's path.

    Raises:
        InputError: there is none.
    """

    def __init__(self, source):
        self.capture = cv2.VideoCapture(int(source) if source.isdecimal()
                                        else source)
        if not self.capture.isOpened():
            raise InputError(f'camera {source}: there is none')
        self.rate = self.capture.get(cv2.CAP_PROP_FPS) or USUAL_RATE

    def __iter__(self):
        """Yields pictures and seconds of the clock: frames may be dropped."""
        start = time.monotonic()
        while True:
            ok, image = self.capture.read()
            if not ok:
                return
            yield image, time.monotonic() - start

    def close(self):
        """Releases the camera."""
        self.capture.release()


class Film(Moving):
    """A video file, or an address.

    Args:
        source: path, or an address of `URLS`.

    Raises:
        InputError: the source holds no video, or cannot be read.
    """

    def __init__(self, source):
        self.source = source
        self.sound_packets = []
        self.stack = contextlib.ExitStack()
        try:
            self.container = self.stack.enter_context(self.open())
            self.video = self.video_stream()
        except (OSError, ValueError, av.FFmpegError) as error:
            self.close()
            raise InputError(f'{printable(source)}: cannot be read as a '
                             f'picture or a video ({reason(error)})') from None
        self.video.thread_type = 'AUTO'
        self.sound = next(iter(self.container.streams.audio), None)
        self.rate = float(self.video.average_rate or self.video.guessed_rate
                          or USUAL_RATE)
        self.total = self.video.frames or None
        # FFmpeg's clock may start anywhere: here the first stream's is 0.
        self.start = (self.container.start_time or 0) / av.time_base

    def open(self):
        """Returns FFmpeg's container of the source."""
        if self.source.startswith(URLS):
            tcp = {'rtsp_transport': 'tcp'}
            return av.open(self.source, timeout=TIMEOUT, options=tcp
                           if self.source.startswith('rtsp') else {})
        # FFmpeg takes some names for protocols.
        return av.open(self.stack.enter_context(open(self.source, 'rb')))

    def video_stream(self):
        """Returns the video's stream.

        Raises:
            ValueError: there is none.
        """
        # FFmpeg reads text as a terminal's pictures, and stills as video.
        name = self.container.format.name
        if name == 'tty' or name.endswith(('_pipe', 'image2')):
            raise ValueError('no video')
        for stream in self.container.streams.video:
            if not stream.disposition & stream.disposition.attached_pic:
                return stream
        raise ValueError('no video in it')

    def __iter__(self):
        """Yields pictures and seconds.

        Raises:
            InputError: no frame, or not all of the file, can be decoded; the
                decoded frames have been yielded.
        """
        count, damage, seconds = 0, None, -1 / self.rate
        streams = [stream for stream in (self.video, self.sound) if stream]
        packets = self.container.demux(streams)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                if packet.stream is self.sound:
                    self.sound_packets.append(packet)
                    continue
                frames = packet.decode()
            except av.InvalidDataError as error:
                damage = error  # of one packet; the next may be whole
                continue
            except av.FFmpegError as error:
                damage = error
                break
            for frame in frames:
                seconds = (frame.time - self.start if frame.time is not None
                           else seconds + 1 / self.rate)
                count += 1
                yield upright(frame), seconds
        if damage or not count:
            raise InputError(
                f'{printable(self.source)}: is damaged: {count} frames can be '
                'read' + (f' ({reason(damage)})' if damage else ''))

    def close(self):
        """Closes the file, and its container."""
        self.stack.close()


def reason(error):
    """Returns the shortest words for FFmpeg's error."""
    return getattr(error, 'strerror', None) or str(error)


def upright(frame):
    """Returns a frame's BGR pixels, turned as its video says."""
    image = frame.to_ndarray(format='bgr24')
    # Degrees counterclockwise, as NumPy turns.
    return np.ascontiguousarray(np.rot90(image, frame.rotation // 90))


# --------------------------------------------------------------- recording

class Recorder:
    """Writes an MP4 that a browser plays: H.264, and a copy of the sound.

    Odd sides get one row or column more, the last one repeated: H.264's
    colours come in squares of two pixels.

    Args:
        path: of the file.
        moving: the `Moving` that is recorded, for its rate and its sound.
    """

    def __init__(self, path, moving):
        self.path = path
        self.moving = moving
        self.container = None  # until the first picture's size is known
        self.sound = None
        self.last = -1  # ticks: of the picture before
        self.step = round(CLOCK / moving.rate)  # ticks from one to the next

    def open(self, size):
        """Opens the file for pictures of a size (width, height)."""
        self.size = size
        self.container = av.open(f'file:{self.path}', 'w', format='mp4',
                                 options={'movflags': 'faststart'})
        self.stream = self.container.add_stream(
            'libx264',
            rate=Fraction(self.moving.rate).limit_denominator(1001),
            # With B-frames FFmpeg takes the wrong frame for the last one, and
            # its end for the video's.
            options={'crf': '20', 'preset': 'veryfast', 'bf': '0'})
        self.stream.width, self.stream.height = size
        self.stream.pix_fmt = 'yuv420p'
        self.stream.codec_context.time_base = Fraction(1, CLOCK)
        sound = self.moving.sound
        if sound and sound.codec_context.name in SOUND:
            self.sound = self.container.add_stream_from_template(sound)
        elif sound:
            tqdm.write(f'{printable(self.moving.source)}: its sound '
                       f'({sound.codec_context.name}) is left out: browsers '
                       'do not play it in an MP4')

    def write(self, image, seconds):
        """Writes a picture, and the sound before it.

        Args:
            image: BGR; another size than the first's is stretched to it.
            seconds: the picture's time.
        """
        height, width = image.shape[:2]
        image = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2,
                                   cv2.BORDER_REPLICATE)
        size = image.shape[1::-1]
        if not self.container:
            self.open(size)
        if size != self.size:
            image = cv2.resize(image, self.size)
        self.copy_sound()
        frame = av.VideoFrame.from_ndarray(image, 'bgr24')
        # An MP4 has no two frames of one time.
        frame.pts = max(self.last + 1, round(seconds * CLOCK))
        frame.time_base = Fraction(1, CLOCK)
        if self.last >= 0:
            self.step = frame.pts - self.last
        self.last = frame.pts
        self.mux(self.stream.encode(frame))

    def mux(self, packets):
        """Writes packets; the last one lasts as long as the one before."""
        for packet in packets:
            packet.duration = self.step
            self.container.mux(packet)

    def copy_sound(self):
        """Writes the sound that has been read since the last picture."""
        packets, self.moving.sound_packets = self.moving.sound_packets, []
        for packet in packets if self.sound else ():
            if packet.dts is None:  # only ends the stream, or is damaged
                continue
            ticks = round(Fraction(self.moving.start) / packet.time_base)
            packet.pts -= ticks
            packet.dts -= ticks
            packet.stream = self.sound
            self.container.mux(packet)

    def close(self):
        """Writes the rest of picture and sound, and the file's index."""
        if self.container:
            self.copy_sound()
            self.mux(self.stream.encode())
            self.container.close()


@contextlib.contextmanager
def recording(path, moving):
    """Yields a `Recorder`; the file is written atomically.

    Raises:
        RunError: the file cannot be written.
    """
    with atomic(path) as temporary:
        recorder = Recorder(temporary, moving)
        try:
            try:
                yield recorder
            finally:
                recorder.close()
        except av.FFmpegError as error:
            raise OSError(reason(error)) from None
