import CryptoKit
import ExportedModel
import Foundation
import MLX

public struct Prediction: Sendable, Identifiable {
    public let index: Int
    public let label: String
    /// The probability, 0 to 1.
    public let score: Float
    public var id: Int { index }
}

/// An exported model in mlx-swift. An actor: MLX computes for one call at a time.
public actor MLXClassifier {
    /// The version of MLX inside the release of mlx-swift that Package.swift names.
    public static let mlxVersion = "0.32.2"

    public nonisolated let model: ExportedModel
    private let graph: ImportedFunction

    /// Open a folder that `python -m mlx_convnextv2.export` wrote on a Mac, and run the graph once.
    public init(folder: URL) throws {
        model = try ExportedModel(folder: folder)
        guard model.mlxVersion == Self.mlxVersion else {
            throw ExportedModelError(
                "the graph is for MLX \(model.mlxVersion) and this is MLX \(Self.mlxVersion): export it with that version")
        }
        guard model.device == "metal" else {
            throw ExportedModelError("the graph is for the device \"\(model.device)\": export it on a Mac with Metal")
        }
        let file = folder.appendingPathComponent(model.graph)
        let digest = SHA256.hash(data: try Data(contentsOf: file, options: .mappedIfSafe))
        guard digest.map({ String(format: "%02x", $0) }).joined() == model.sha256 else {
            throw ExportedModelError("\(file.path) is not the file that model.json describes: copy it again")
        }
        graph = try importFunction(from: file)
        let blank = [UInt8](repeating: 0, count: model.batches[0] * model.height * model.width * 3)
        let outputs = try graph(MLXArray(blank, [model.batches[0], model.height, model.width, 3]))
        guard outputs.first?.size == model.batches[0] * model.labels.count else {
            throw ExportedModelError("the graph's outputs are not those of model.json: export it again")
        }
        try checkedEval(outputs)
    }

    /// The labels of an image, the most probable first.
    public func classify(_ image: PixelImage, top count: Int = 5) throws -> [Prediction] {
        let batch = model.batches[0]
        var pixels = try model.prepare(image)
        pixels += [UInt8](repeating: 0, count: (batch - 1) * pixels.count)  // the smallest batch that was exported
        let outputs = try graph(MLXArray(pixels, [batch, model.height, model.width, 3]))
        try checkedEval(outputs)
        let scores = outputs[0].asArray(Float.self).prefix(model.labels.count)
        let order = scores.indices.sorted { scores[$0] == scores[$1] ? $0 < $1 : scores[$0] > scores[$1] }
        return order.prefix(max(count, 0)).map { Prediction(index: $0, label: model.labels[$0], score: scores[$0]) }
    }
}
