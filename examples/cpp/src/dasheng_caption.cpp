// dasheng-caption: what is to be heard in audio files, in words. Stands on dasheng_edge.h alone.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "dasheng_edge.h"

namespace {

const char usage[] =
    "usage: dasheng-caption BUNDLE [FILE.wav...] [options]\n"
    "  --prompt TEXT           ask this in place of the bundle's own question\n"
    "  --max-new-tokens N      longest answer, in tokens (default: as the bundle says)\n"
    "  --json                  a line of JSON for each file\n"
    "  --stream                write the answer as it comes\n"
    "  --threads N             threads that compute (default: one for each processor)\n"
    "  --low-memory            never hold the audio's graphs and the decoder together; keys and values in q8_0\n"
    "  --no-sha256             do not read every byte of the bundle to compare its checksums\n"
    "  --verify                hold this machine against the bundle's golden vectors\n"
    "Status: 0, 1 if something failed or a seam is not accepted, 2 for wrong arguments.\n";

struct Arguments {
  std::vector<std::string> names;  // the bundle and the files
  std::string prompt;
  bool asks = false, json = false, stream = false, verify = false;
  int32_t max_new_tokens = 0;
  dasheng_edge_options options{};
};

[[noreturn]] void wrong(const std::string &problem) {
  std::fprintf(stderr, "dasheng-caption: %s\n%s", problem.c_str(), usage);
  std::exit(2);
}

int32_t number(const std::string &option, const std::string &text) {
  char *end = nullptr;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (text.empty() || *end || value < 1 || value > 1 << 24) wrong(option + " is '" + text + "', expected a whole number from 1 on");
  return static_cast<int32_t>(value);
}

Arguments parsed(int count, char **given) {
  Arguments arguments;
  bool options = true;
  for (int i = 1; i < count; i++) {
    const std::string word = given[i];
    const auto value = [&]() -> std::string { return i + 1 < count ? given[++i] : (wrong(word + " needs a value"), ""); };
    if (!options || word.empty() || word[0] != '-') arguments.names.push_back(word);
    else if (word == "--") options = false;
    else if (word == "--prompt") arguments.prompt = value(), arguments.asks = true;
    else if (word == "--max-new-tokens") arguments.max_new_tokens = number(word, value());
    else if (word == "--threads") arguments.options.threads = number(word, value());
    else if (word == "--low-memory") arguments.options.low_memory = 1;
    else if (word == "--no-sha256") arguments.options.skip_sha256 = 1;
    else if (word == "--json") arguments.json = true;
    else if (word == "--stream") arguments.stream = true;
    else if (word == "--verify") arguments.verify = true;
    else if (word == "--help" || word == "-h") std::fputs(usage, stdout), std::exit(0);
    else wrong("there is no option " + word);
  }
  if (arguments.names.empty() || (arguments.names.size() == 1) != arguments.verify) wrong(arguments.verify ? "--verify takes a bundle and no files" : "name a bundle, and a file to caption");
  if (arguments.json && arguments.stream) wrong("--json and --stream exclude each other");
  return arguments;
}

std::string quoted(const char *text) {
  std::string out = "\"";
  for (const char *c = text; *c; c++) {
    char escaped[8];
    if (static_cast<unsigned char>(*c) < 0x20 || *c == 0x7f) std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned char>(*c)), out += escaped;
    else if (*c == '"' || *c == '\\') out += '\\', out += *c;
    else out += *c;
  }
  return out + "\"";
}

// Of memory that was in use at a time. Linux hands getrusage's number down from the program that started this one.
long peak_bytes() {
  long kilobytes = 0;
  if (std::FILE *file = std::fopen("/proc/self/status", "r")) {
    char line[256];
    while (std::fgets(line, sizeof line, file))
      if (std::sscanf(line, "VmHWM: %ld", &kilobytes) == 1) break;
    std::fclose(file);
  }
  return kilobytes * 1024;
}

int failed(const std::string &file) {
  std::fprintf(stderr, "dasheng-caption: %s%s\n", file.empty() ? "" : (file + ": ").c_str(), dasheng_edge_error());
  return 1;
}

int write_piece(const char *piece, void *) {
  std::fputs(piece, stdout);
  return std::fflush(stdout);
}

void show(const Arguments &arguments, const std::string &file, const dasheng_edge_answer &answer) {
  if (arguments.json)
    std::printf("{\"audio\": %s, \"text\": %s, \"end\": \"%s\", \"tokens\": %d, \"prompt_tokens\": %d, \"audio_tokens\": %d, \"audio_s\": %.3f, \"hear_ms\": %.1f, \"prefill_ms\": %.1f, \"decode_ms\": %.1f, \"peak_bytes\": %ld, \"warning\": %s}\n",
                quoted(file.c_str()).c_str(), quoted(answer.text).c_str(), answer.end, answer.tokens, answer.prompt_tokens, answer.audio_tokens, answer.audio_s, answer.hear_ms, answer.prefill_ms, answer.decode_ms, peak_bytes(),
                quoted(answer.warning).c_str());
  else
    std::printf("%s\n", arguments.stream ? "" : answer.text);
  std::fflush(stdout);
  if (answer.warning[0]) std::fprintf(stderr, "dasheng-caption: %s: %s\n", file.c_str(), answer.warning);
}

using Bundle = std::unique_ptr<dasheng_edge, void (*)(dasheng_edge *)>;
using Clip = std::unique_ptr<dasheng_edge_clip, void (*)(dasheng_edge_clip *)>;

Clip hear(dasheng_edge *bundle, const std::string &file) {
  float *samples = nullptr;
  size_t count = 0;
  dasheng_edge_clip *clip = nullptr;
  if (!dasheng_edge_read_audio(file.c_str(), &samples, &count)) dasheng_edge_hear(bundle, samples, count, &clip);
  dasheng_edge_free(samples);
  return {clip, dasheng_edge_clip_close};
}

int caption(const Arguments &arguments, dasheng_edge *bundle) {
  const dasheng_edge_request request = {arguments.asks ? arguments.prompt.c_str() : nullptr, arguments.max_new_tokens, arguments.stream ? write_piece : nullptr, nullptr};
  const std::vector<std::string> files(arguments.names.begin() + 1, arguments.names.end());
  // With low memory all files are heard first, and the decoder is loaded once.
  const size_t together = arguments.options.low_memory ? files.size() : 1;
  int status = 0;
  for (size_t first = 0; first < files.size(); first += together) {
    std::vector<Clip> clips;
    const size_t last = std::min(first + together, files.size());
    for (size_t i = first; i < last; i++) {
      clips.push_back(hear(bundle, files[i]));
      if (!clips.back()) status = failed(files[i]);
    }
    for (size_t i = first; i < last; i++) {
      dasheng_edge_answer answer;
      if (!clips[i - first]) continue;
      if (files.size() > 1 && !arguments.json) std::printf("%s: ", files[i].c_str());
      if (dasheng_edge_ask(bundle, clips[i - first].get(), &request, &answer)) {
        if (files.size() > 1 && !arguments.json) std::printf("\n");
        status = failed(files[i]);
      } else {
        show(arguments, files[i], answer);
      }
    }
  }
  return status;
}

void show_seam(const dasheng_edge_seam *seam, void *json) {
  const bool good = seam->error <= seam->tolerance;
  char error[32] = "null";
  if (std::isfinite(seam->error) || !json) std::snprintf(error, sizeof error, "%.3g", seam->error);
  if (json)
    std::printf("{\"clip\": %s, \"seam\": \"%s\", \"error\": %s, \"tolerance\": %g, \"unit\": \"%s\", \"good\": %s, \"note\": %s}\n", quoted(seam->clip).c_str(), seam->seam, error, seam->tolerance, seam->unit, good ? "true" : "false",
                quoted(seam->note).c_str());
  else
    std::printf("%-6s %-16s %-14s %10s  (accepted: %g %s) %s\n", good ? "ok" : "FAILED", seam->clip, seam->seam, error, seam->tolerance, seam->unit, seam->note);
}

}  // namespace

int main(int count, char **given) {
  const Arguments arguments = parsed(count, given);
  dasheng_edge *opened = nullptr;
  if (dasheng_edge_open(arguments.names[0].c_str(), &arguments.options, &opened)) return failed("");
  const Bundle bundle(opened, dasheng_edge_close);
  if (!arguments.verify) return caption(arguments, opened);
  int good = 0;
  bool json = arguments.json;
  if (dasheng_edge_verify(opened, show_seam, json ? &json : nullptr, &good)) return failed("");
  if (!good) std::fprintf(stderr, "dasheng-caption: this machine computes something else than the bundle's golden vectors\n");
  return good ? 0 : 1;
}
