// Files: mapped, read-only.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace dasheng {

// Bytes of a regular file; -1 where there is none.
int64_t file_bytes(const std::string &path);

class MappedFile {
 public:
  explicit MappedFile(const std::string &path);
  ~MappedFile();
  MappedFile(const MappedFile &) = delete;
  MappedFile &operator=(const MappedFile &) = delete;
  std::string_view bytes() const { return {data_, size_}; }

 private:
  const char *data_ = "";
  size_t size_ = 0;
};

std::string sha256_of(const std::string &path);  // 64 lower-case hexadecimal digits; reads in blocks

}  // namespace dasheng
