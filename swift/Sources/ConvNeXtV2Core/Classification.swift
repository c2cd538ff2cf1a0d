import Foundation

/// One label of an image.
public struct Classification: Equatable, Sendable, Identifiable {
    public let label: String
    /// The probability, 0 to 1.
    public let score: Float
    /// The class.
    public let index: Int
    public var id: Int { index }

    public init(label: String, score: Float, index: Int) {
        self.label = label
        self.score = score
        self.index = index
    }

    /// The most probable labels, best first; where scores are equal, the lower class.
    ///
    /// - Parameters:
    ///   - logits: one for each label. The softmax over all of them is computed in float32.
    /// - Throws: ``ConvNeXtV2Error/computation(_:)`` where a score is not finite.
    public static func best(_ count: Int, logits: [Float], labels: [String]) throws -> [Classification] {
        let highest = logits.max() ?? 0
        let powers = logits.map { exp($0 - highest) }
        let sum = powers.reduce(0, +)
        let scores = powers.map { $0 / sum }
        guard scores.count == labels.count, scores.allSatisfy(\.isFinite) else {
            throw ConvNeXtV2Error.computation(
                "its scores are not finite: the model's weights are damaged, or too large for their type")
        }
        let order = scores.indices.sorted { scores[$0] == scores[$1] ? $0 < $1 : scores[$0] > scores[$1] }
        return order.prefix(max(count, 0)).map {
            Classification(label: labels[$0], score: scores[$0], index: $0)
        }
    }
}
