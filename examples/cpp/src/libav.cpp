// Anything but wav, by FFmpeg's libraries where they were there when this was built.
#include "audio_file.h"
#include "error.h"

#ifdef DASHENG_LIBAV
#include <memory>

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libswresample/swresample.h>
}

namespace dasheng {
namespace {

constexpr double most_seconds = 6 * 3600;

void check(int status, const char *what) {
  char text[AV_ERROR_MAX_STRING_SIZE] = "";
  if (status < 0 && av_strerror(status, text, sizeof text) < 0) text[0] = '\0';
  if (status < 0) fail(what, ": ", text);
}

struct Opened {
  AVFormatContext *format = nullptr;
  AVCodecContext *codec = nullptr;
  AVPacket *packet = av_packet_alloc();
  AVFrame *frame = av_frame_alloc();
  SwrContext *converter = nullptr;
  ~Opened() {
    swr_free(&converter), av_frame_free(&frame), av_packet_free(&packet), avcodec_free_context(&codec), avformat_close_input(&format);
  }
};

// Interleaved float32 of all channels at the file's own rate.
void take_frames(Opened &file, Sound &sound) {
  int status;
  while ((status = avcodec_receive_frame(file.codec, file.frame)) >= 0) {
    const AVFrame &frame = *file.frame;
    if (!file.converter) {
      sound.channels = static_cast<size_t>(frame.ch_layout.nb_channels), sound.rate_hz = static_cast<uint32_t>(frame.sample_rate);
      if (sound.channels < 1 || sound.channels > 64 || sound.rate_hz < 1000 || sound.rate_hz > 768000) fail("it has ", sound.channels, " channels at ", sound.rate_hz, " Hz");
      AVChannelLayout *layout = &file.frame->ch_layout;  // which FFmpeg 5 does not take as const
      check(swr_alloc_set_opts2(&file.converter, layout, AV_SAMPLE_FMT_FLT, frame.sample_rate, layout, static_cast<AVSampleFormat>(frame.format), frame.sample_rate, 0, nullptr), "its samples cannot be converted");
      check(swr_init(file.converter), "its samples cannot be converted");
    }
    if (static_cast<size_t>(frame.ch_layout.nb_channels) != sound.channels || static_cast<uint32_t>(frame.sample_rate) != sound.rate_hz) fail("its channels or its rate change on the way");
    const size_t before = sound.samples.size();
    if (static_cast<double>(before / sound.channels) / sound.rate_hz > most_seconds) fail("it is longer than ", most_seconds / 3600, " hours; cut it");
    sound.samples.resize(before + static_cast<size_t>(frame.nb_samples) * sound.channels);
    uint8_t *out = reinterpret_cast<uint8_t *>(sound.samples.data() + before);
    check(swr_convert(file.converter, &out, frame.nb_samples, const_cast<const uint8_t **>(frame.extended_data), frame.nb_samples), "its samples cannot be converted");
  }
  if (status != AVERROR(EAGAIN) && status != AVERROR_EOF) check(status, "it is damaged");
}

}  // namespace

Sound read_with_libav(const std::string &path) {
  av_log_set_level(AV_LOG_QUIET);
  Opened file;
  Sound sound;
  check(avformat_open_input(&file.format, ("file:" + path).c_str(), nullptr, nullptr), "no format that is known here");
  check(avformat_find_stream_info(file.format, nullptr), "no format that is known here");
  const AVCodec *codec = nullptr;
  const int stream = av_find_best_stream(file.format, AVMEDIA_TYPE_AUDIO, -1, -1, &codec, 0);
  check(stream, "it has no audio");
  file.codec = avcodec_alloc_context3(codec);
  if (!file.codec || !file.packet || !file.frame) throw std::bad_alloc();
  check(avcodec_parameters_to_context(file.codec, file.format->streams[stream]->codecpar), "its audio cannot be decoded");
  check(avcodec_open2(file.codec, codec, nullptr), "its audio cannot be decoded");
  while (av_read_frame(file.format, file.packet) >= 0) {
    if (file.packet->stream_index == stream && avcodec_send_packet(file.codec, file.packet) >= 0) take_frames(file, sound);
    av_packet_unref(file.packet);
  }
  avcodec_send_packet(file.codec, nullptr);
  take_frames(file, sound);
  return sound;
}

}  // namespace dasheng

#else

namespace dasheng {

Sound read_with_libav(const std::string &) { fail("it is no wav file, and this program was built without libav, which reads others; convert it, for example by `ffmpeg -i FILE out.wav`"); }

}  // namespace dasheng
#endif
