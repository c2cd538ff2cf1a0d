#include "guard.hpp"

#include <algorithm>

#include "convnextv2/image.hpp"

namespace convnextv2 {
namespace {
thread_local std::string last_message;
}

void set_message(const char* message) noexcept {
  try {
    last_message = message;
  } catch (...) {  // no memory for the sentence: the status stands alone
    last_message.clear();
  }
}

}  // namespace convnextv2

const char* convnextv2_message(void) { return convnextv2::last_message.c_str(); }

convnextv2_status convnextv2_prepare(const convnextv2_image* image, const convnextv2_preparation* preparation,
                                     uint8_t* rgb) {
  return convnextv2::guarded([&] {
    if (image == nullptr || preparation == nullptr || rgb == nullptr) {
      throw convnextv2::Error(CONVNEXTV2_INVALID_ARGUMENT, "convnextv2_prepare takes no null pointers");
    }
    const convnextv2::Image prepared = convnextv2::prepare(*image, *preparation);
    std::copy(prepared.pixels.begin(), prepared.pixels.end(), rgb);
  });
}
