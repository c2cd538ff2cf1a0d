import ConvNeXtV2Core
import Foundation
import MLX
import MLXNN

// The way of the weights: files -> headers -> compared with the model's parameters -> read by MLX -> cast. All checks
// come before MLX is asked, which would stop the process where Python raises an error.

extension ConvNeXtV2ForImageClassification {
    /// Load a checkpoint folder, strictly: no parameter is missing, no tensor is left over.
    ///
    /// - Parameters:
    ///   - folder: written by `python -m mlx_convnextv2.convert`, quantized or not, or Hugging Face's own.
    ///   - dtype: float32, float16 or bfloat16 to compute in; nil keeps the checkpoint's.
    /// - Throws: ``ConvNeXtV2Error``, which lists the tensors that do not fit.
    public static func load(from folder: URL, dtype: DType? = nil) throws -> ConvNeXtV2ForImageClassification {
        let checkpoint = try OpenCheckpoint(folder, dtype)
        guard checkpoint.hasClassifier else {
            throw ConvNeXtV2Error.invalid("\(folder.path) holds no classifier: load it as a ConvNeXtV2Model")
        }
        let model = try ConvNeXtV2ForImageClassification(checkpoint.configuration, checkpoint.factory(prefix: ""))
        try checkpoint.fill(model)
        return model
    }
}

extension ConvNeXtV2Model {
    /// As ``ConvNeXtV2ForImageClassification/load(from:dtype:)``; a classifier in the checkpoint is left out.
    public static func load(from folder: URL, dtype: DType? = nil) throws -> ConvNeXtV2Model {
        let checkpoint = try OpenCheckpoint(folder, dtype)
        let prefix = checkpoint.prefix
        let model = try ConvNeXtV2Model(checkpoint.configuration, checkpoint.factory(prefix: prefix), prefix: "")
        try checkpoint.fill(model, prefix: prefix, leftOut: ["classifier."])
        return model
    }
}

extension ConvNeXtV2Backbone {
    /// As ``ConvNeXtV2ForImageClassification/load(from:dtype:)``; classifier and final norm are left out.
    ///
    /// - Parameter outFeatures: stages to return, such as `["stage2", "stage4"]`; nil means the checkpoint's own. Their
    ///   norms start at 1 and 0 where the checkpoint has none, as in transformers.
    public static func load(
        from folder: URL, outFeatures: [String]? = nil, dtype: DType? = nil
    ) throws -> ConvNeXtV2Backbone {
        let checkpoint = try OpenCheckpoint(folder, dtype)
        let configuration = try checkpoint.configuration.returning(outFeatures)
        let prefix = checkpoint.prefix
        let model = try ConvNeXtV2Backbone(configuration, checkpoint.factory(prefix: prefix))
        var leftOut = ["classifier.", "\(prefix)layernorm."]
        var keepsOwn: [String] = []
        if checkpoint.hasNorms {
            let unasked = Set(configuration.stageNames).subtracting(configuration.outFeatures)
            leftOut += unasked.map { "hidden_states_norms.\($0)." }
        } else {
            keepsOwn = ["hidden_states_norms."]
        }
        try checkpoint.fill(model, prefix: prefix, leftOut: leftOut, keepsOwn: keepsOwn)
        return model
    }
}

extension ConvNeXtV2Configuration {
    func returning(_ outFeatures: [String]?) throws -> ConvNeXtV2Configuration {
        guard let outFeatures else { return self }
        return try ConvNeXtV2Configuration(
            numChannels: numChannels, patchSize: patchSize, hiddenSizes: hiddenSizes, depths: depths,
            hiddenAct: hiddenAct, layerNormEps: layerNormEps, outFeatures: outFeatures, labels: labels,
            quantization: quantization)
    }
}

/// A checkpoint folder whose headers are read, and whose tensors are not.
private struct OpenCheckpoint {
    let configuration: ConvNeXtV2Configuration
    let folder: CheckpointFolder
    let dtype: DType?

    init(_ url: URL, _ dtype: DType?) throws {
        guard dtype.map({ [.float32, .float16, .bfloat16].contains($0) }) ?? true else {
            throw ConvNeXtV2Error.invalid("dtype must be float32, float16 or bfloat16")
        }
        configuration = try ConvNeXtV2Configuration(contentsOf: url)
        folder = try CheckpointFolder(contentsOf: url)
        self.dtype = dtype
    }

    /// What the checkpoint of a classifier puts before the names of its body.
    var prefix: String { folder.names.contains { $0.hasPrefix("convnextv2.") } ? "convnextv2." : "" }
    var hasClassifier: Bool { folder.names.contains { $0.hasPrefix("classifier.") } }
    var hasNorms: Bool { folder.names.contains { $0.hasPrefix("hidden_states_norms.") } }

    /// - Parameter prefix: what the checkpoint puts before the model's own names.
    func factory(prefix: String) throws -> LayerFactory {
        let paths = folder.names.filter { $0.hasSuffix(".scales") }.map { String($0.dropLast(".scales".count)) }
        let own = paths.map { $0.hasPrefix(prefix) ? String($0.dropFirst(prefix.count)) : $0 }
        guard let stated = configuration.quantization, !prefix.isEmpty else {
            return LayerFactory(quantization: configuration.quantization, quantized: Set(own))
        }
        let sizes = stated.ownGroupSizes.map { key, size in
            (key.hasPrefix(prefix) ? String(key.dropFirst(prefix.count)) : key, size)
        }
        let quantization = try ConvNeXtV2Quantization(
            mode: stated.mode, bits: stated.bits, groupSize: stated.groupSize,
            ownGroupSizes: Dictionary(sizes) { first, _ in first })
        return LayerFactory(quantization: quantization, quantized: Set(own))
    }

    /// Give the model its weights, and evaluate them: lazy ones would be of use in this thread alone.
    ///
    /// - Parameters:
    ///   - leftOut: beginnings of names in the files that the model has no use for.
    ///   - keepsOwn: beginnings of names of the model's that the files do not have.
    func fill(_ model: Module, prefix: String = "", leftOut: [String] = [], keepsOwn: [String] = []) throws {
        let parameters = model.parameters().flattened().filter { name, _ in !keepsOwn.contains { name.hasPrefix($0) } }
        let expected = parameters.map { name, array in
            (prefix.isEmpty || name.hasPrefix("hidden_states_norms.") ? name : prefix + name, array)
        }
        try folder.check(Dictionary(uniqueKeysWithValues: expected.map { ($0.0, $0.1.stored) })) { name in
            leftOut.contains { name.hasPrefix($0) }
        }
        var files: [URL: [String: MLXArray]] = [:]
        var weights: [(String, MLXArray)] = []
        for ((own, _), (name, _)) in zip(parameters, expected) {
            guard let entry = folder.entries[name] else { continue }  // checked above
            if files[entry.file] == nil {
                files[entry.file] = try translated(entry.file) { try loadArrays(url: entry.file) }
            }
            guard var array = files[entry.file]?[entry.key] else {
                throw ConvNeXtV2Error.unreadable("\(entry.file.path) changed while it was read: load it again")
            }
            if entry.isTransposed { array = array.transposed(0, 2, 3, 1) }
            if let dtype, entry.tensor.isFloating { array = array.asType(dtype) }
            weights.append((own, contiguous(array)))
        }
        try model.update(parameters: ModuleParameters.unflattened(weights), verify: .none)
        try translated(folder.url) { try checkedEval(model) }
    }

    private func translated<Result>(_ file: URL, _ body: () throws -> Result) throws -> Result {
        do {
            return try body()
        } catch let error as MLXError {
            throw ConvNeXtV2Error.unreadable("\(file.path) cannot be read: \(error.localizedDescription)")
        }
    }
}

extension MLXArray {
    /// The shape and dtype as a safetensors file has them; every floating type is alike there.
    fileprivate var stored: StoredTensor {
        let name =
            switch dtype {
            case .uint32: "U32"
            case .uint8: "U8"
            default: "F32"
            }
        return StoredTensor(dtype: name, shape: shape)
    }
}
