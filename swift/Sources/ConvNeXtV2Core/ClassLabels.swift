/// The label of each class.
public enum ClassLabels {
    /// What stands where nobody named the classes: LABEL_0, LABEL_1, ...
    public static func unnamed(_ count: Int) -> [String] { (0..<max(count, 0)).map { "LABEL_\($0)" } }

    /// The labels to show: the checkpoint's own, or ImageNet-1k's names where it has 1000 unnamed ones.
    public static func named(_ labels: [String]) -> [String] {
        labels.count == imageNet1k.count && labels == unnamed(labels.count) ? imageNet1k : labels
    }

    /// From `id2label`, which says most, `label2id`, or `num_labels`, which says least.
    static func read(_ fields: [String: JSONValue]) throws -> [String] {
        let stated = try fields.whole("num_labels", in: 0...ConvNeXtV2Configuration.mostLabels)
        guard let labels = try fromIndices(fields) ?? fromLabels(fields) else { return unnamed(stated ?? 2) }
        if let stated, labels == unnamed(labels.count) { return unnamed(stated) }
        if let stated, stated != labels.count {
            throw ConvNeXtV2Error.invalid(
                "num_labels is \(stated) but id2label has \(labels.count) labels: they must agree")
        }
        return labels
    }

    private static func fromIndices(_ fields: [String: JSONValue]) throws -> [String]? {
        guard let value = fields.given("id2label") else { return nil }
        if let list = value.list { return try inOrder(list.enumerated().map { ($0.offset, $0.element.label) }) }
        guard let map = value.fields else {
            throw ConvNeXtV2Error.invalid("id2label must map class indices to labels, or list them")
        }
        return try inOrder(map.map { (Int($0.key), $0.value.label) })
    }

    private static func fromLabels(_ fields: [String: JSONValue]) throws -> [String]? {
        guard let value = fields.given("label2id") else { return nil }
        guard let map = value.fields else {
            throw ConvNeXtV2Error.invalid("label2id must be a map of labels to class indices")
        }
        return try inOrder(map.map { ($0.value.whole, $0.key) })
    }

    private static func inOrder(_ pairs: [(Int?, String?)]) throws -> [String] {
        var labels = [String?](repeating: nil, count: pairs.count)
        for (index, label) in pairs {
            guard let index, let label, labels.indices.contains(index), labels[index] == nil else {
                throw ConvNeXtV2Error.invalid(
                    "id2label must number its \(pairs.count) labels from 0 without a gap, each of them text")
            }
            labels[index] = label
        }
        return labels.compactMap { $0 }
    }
}
