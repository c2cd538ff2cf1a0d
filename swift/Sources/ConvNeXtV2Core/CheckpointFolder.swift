import Foundation

/// The weights of a checkpoint folder, under Hugging Face's names: their headers, before any tensor is read.
public struct CheckpointFolder: Sendable {
    /// Where a tensor lies, and how it comes to MLX's layout.
    public struct Entry: Equatable, Sendable {
        public let file: URL
        public let key: String
        /// In MLX's layout.
        public let tensor: StoredTensor
        /// The file has a convolution as (out, in, height, width), and MLX wants (out, height, width, in).
        public let isTransposed: Bool
    }

    public let url: URL
    public let entries: [String: Entry]
    public var names: Set<String> { Set(entries.keys) }

    static let weightsFile = "model.safetensors"
    static let indexFile = "model.safetensors.index.json"

    /// What a download has to bring.
    public static let patterns = ["*.safetensors", "*.json"]

    /// Read the headers of `model.safetensors`, or of the shards that its index names.
    ///
    /// Folders that `python -m mlx_convnextv2.convert` wrote are read as they are, and Hugging Face's own too, whose
    /// convolutions are then turned into MLX's layout. Which of the two it is, the files state.
    ///
    /// - Throws: ``ConvNeXtV2Error`` where files are missing or corrupt, or of another format.
    public init(contentsOf url: URL) throws {
        var entries: [String: Entry] = [:]
        var formats: Set<String> = []
        for file in try Self.weightFiles(url) {
            let header = try SafetensorsFile(contentsOf: file)
            formats.insert(header.format)
            for (key, tensor) in header.tensors {
                let entry = Self.entry(file: file, key: key, tensor: tensor, isMLX: header.format == "mlx")
                guard entries.updateValue(entry, forKey: Self.name(key)) == nil else {
                    throw ConvNeXtV2Error.unreadable(
                        "\(url.path) holds \(short(key)) more than once: download it again")
                }
            }
        }
        guard formats.count == 1, formats.isSubset(of: ["mlx", "pt"]) else {
            let found = formats.sorted().joined(separator: " and ")
            throw ConvNeXtV2Error.unreadable(
                "\(url.path) has weights in the format \(short(found)): convert it with python -m mlx_convnextv2.convert"
            )
        }
        self.url = url
        self.entries = entries
    }

    /// Throw ``ConvNeXtV2Error/weightsDoNotFit(folder:missing:unexpected:misshaped:)`` unless these are the model's.
    ///
    /// - Parameters:
    ///   - expected: what the model wants, by the name in the files.
    ///   - leftOut: names in the files that the model has no use for.
    public func check(_ expected: [String: StoredTensor], leftOut: (String) -> Bool = { _ in false }) throws {
        let missing = expected.keys.filter { entries[$0] == nil }.sorted()
        let unexpected = entries.keys.filter { expected[$0] == nil && !leftOut($0) }.sorted()
        let misshaped = expected.compactMap { name, wanted -> String? in
            guard let found = entries[name]?.tensor else { return nil }
            let fits = found.isFloating == wanted.isFloating && (found.isFloating || found.dtype == wanted.dtype)
            guard found.shape != wanted.shape || !fits else { return nil }
            return "\(name) is \(found.dtype) \(found.shape) and should be \(wanted.dtype) \(wanted.shape)"
        }
        guard missing.isEmpty, unexpected.isEmpty, misshaped.isEmpty else {
            throw ConvNeXtV2Error.weightsDoNotFit(
                folder: url.path, missing: missing, unexpected: unexpected, misshaped: misshaped.sorted())
        }
    }

    private static func weightFiles(_ folder: URL) throws -> [URL] {
        let file = folder.appendingPathComponent(weightsFile)
        if FileManager.default.fileExists(atPath: file.path) { return [file] }
        let index = folder.appendingPathComponent(indexFile)
        guard FileManager.default.fileExists(atPath: index.path) else {
            throw ConvNeXtV2Error.notFound(
                "\(folder.path) has no \(weightsFile) or \(indexFile): there are no weights to read")
        }
        guard let map = try JSONValue.object(from: index)["weight_map"]?.fields, !map.isEmpty else {
            throw ConvNeXtV2Error.unreadable("\(index.path) has no \"weight_map\": download it again")
        }
        let names = Set(map.values.map { $0.text ?? "" })
        for name in names where name.hasPrefix(".") || name.contains("/") || !name.hasSuffix(".safetensors") {
            throw ConvNeXtV2Error.unreadable(
                "\(index.path) names \(short(name)), which is not a safetensors file beside it")
        }
        return names.sorted().map { folder.appendingPathComponent($0) }
    }

    /// Hub files from before 2025 call GRN's parameters as the paper does.
    private static func name(_ key: String) -> String {
        for (old, new) in [(".grn.gamma", ".grn.weight"), (".grn.beta", ".grn.bias")] where key.hasSuffix(old) {
            return key.dropLast(old.count) + new
        }
        return key
    }

    private static func entry(file: URL, key: String, tensor: StoredTensor, isMLX: Bool) -> Entry {
        let convolutions = ["patch_embeddings.weight", "downsampling_layer.1.weight", "dwconv.weight"]
        guard !isMLX, tensor.shape.count == 4, convolutions.contains(where: { ".\(key)".hasSuffix(".\($0)") }) else {
            return Entry(file: file, key: key, tensor: tensor, isTransposed: false)
        }
        let shape = [0, 2, 3, 1].map { tensor.shape[$0] }
        return Entry(
            file: file, key: key, tensor: StoredTensor(dtype: tensor.dtype, shape: shape), isTransposed: true)
    }
}
