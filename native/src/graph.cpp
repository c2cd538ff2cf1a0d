#include "graph.hpp"

#include <map>

#include "mlx/backend/cuda/cuda.h"
#include "mlx/backend/metal/metal.h"
#include "mlx/mlx.h"
#include "mlx_thread.hpp"
#include "sha256.hpp"

namespace convnextv2 {

namespace mx = mlx::core;

struct Graph::Loaded {
  mx::ImportedFunction function;
};

namespace {

constexpr int kChannels = 3;

void check_version(const Description& description) {
  if (description.mlx_version != mx::version()) {
    throw Error(CONVNEXTV2_WRONG_VERSION, "the graph is for MLX " + description.mlx_version + " and this is MLX " +
                                              mx::version() + ": export it again with this version, or build the app " +
                                              "with that one");
  }
}

mx::Device find_device(const Description& description) {
  const std::string& name = description.device;
  if (name == "cpu") return mx::Device::cpu;
  if ((name == "metal" && mx::metal::is_available()) || (name == "cuda" && mx::cu::is_available())) {
    return mx::Device::gpu;
  }
  throw Error(CONVNEXTV2_WRONG_DEVICE, "the graph is for the device \"" + name +
                                           "\", which MLX does not have here: export it on such a machine");
}

void check_file(const Folder& folder) {
  std::error_code error;
  const auto size = std::filesystem::file_size(folder.graph, error);
  if (error) throw Error(CONVNEXTV2_NOT_FOUND, folder.graph.string() + " is not there or cannot be read");
  if (size != folder.bytes || sha256(folder.graph) != folder.sha256) {
    throw Error(CONVNEXTV2_DAMAGED, folder.graph.string() + " has " + std::to_string(size) + " bytes and " +
                                        (size == folder.bytes ? "another checksum than" : "not the size that") +
                                        " model.json says: copy it again");
  }
}

// Make the stream that the graph will ask for by its number this thread's default one.
void claim_stream(const mx::Device& device, int number) {
  static auto& streams = *new std::map<int, mx::Stream>;  // the MLX thread's, which outlives static objects as it does
  while (streams.empty() || streams.rbegin()->first < number) {
    const mx::Stream stream = mx::new_stream(device);
    streams.emplace(stream.index, stream);
  }
  const auto found = streams.find(number);
  if (found == streams.end() || found->second.device != device) {
    throw Error(CONVNEXTV2_STREAM_TAKEN, "MLX's stream " + std::to_string(number) +
                                             ", which the graph runs on, belongs to other code of this process: open "
                                             "the classifier before anything else uses MLX, and graphs of one device");
  }
  mx::set_default_stream(found->second);
}

}  // namespace

Graph::Graph(const Folder& folder)
    : width_(folder.description.width),
      height_(folder.description.height),
      labels_(folder.description.labels.size()),
      embedding_size_(folder.description.embedding_size) {
  check_version(folder.description);
  check_file(folder);
  MlxThread::instance().run([&] {
    claim_stream(find_device(folder.description), folder.description.stream);
    loaded_.reset(new Loaded{mx::import_function(folder.graph.string())});
  });
  const std::size_t batch = folder.description.batches.front();
  try {
    run(std::vector<std::uint8_t>(batch * height_ * width_ * kChannels), batch);
  } catch (...) {
    MlxThread::instance().run([this] { loaded_.reset(); });
    throw;
  }
  MlxThread::instance().finish_at_exit();
}

Graph::~Graph() {
  try {
    MlxThread::instance().run([this] { loaded_.reset(); });
  } catch (const Error&) {  // after a fork, or at the process's end: the memory goes with it
    static_cast<void>(loaded_.release());
  }
}

Output Graph::run(std::span<const std::uint8_t> pixels, std::size_t batch) const {
  Output output;
  MlxThread::instance().run([&] {
    const mx::Shape shape{static_cast<int>(batch), static_cast<int>(height_), static_cast<int>(width_), kChannels};
    auto results = loaded_->function({mx::array(pixels.data(), shape, mx::uint8)});  // copies the pixels
    const auto take = [&](std::size_t i, std::size_t size, std::vector<float>& values) {
      if (results.at(i).dtype() != mx::float32 || results[i].size() != batch * size) {
        throw Error(CONVNEXTV2_BAD_DESCRIPTION, "the graph's outputs are not those of model.json: export it again");
      }
      const mx::array rows = mx::contiguous(results[i]);
      mx::eval(rows);
      values.assign(rows.data<float>(), rows.data<float>() + rows.size());
    };
    if (results.size() != (embedding_size_ != 0 ? 2U : 1U)) {
      throw Error(CONVNEXTV2_BAD_DESCRIPTION, "the graph's outputs are not those of model.json: export it again");
    }
    take(0, labels_, output.probabilities);
    if (embedding_size_ != 0) take(1, embedding_size_, output.embeddings);
  });
  return output;
}

const char* Graph::mlx_version() { return mx::version(); }

void Graph::set_metallib(const std::filesystem::path& file) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(file, error)) {
    throw Error(CONVNEXTV2_NOT_FOUND, file.string() + " is not there: copy mlx.metallib from where libmlx.dylib is");
  }
  MlxThread::instance().run([&] { mx::metal::set_metallib_path(file.string()); });
}

}  // namespace convnextv2
