import ClassifyCommand
import XCTest

@testable import ConvNeXtV2Core

final class ReportTests: XCTestCase {
    func testTheMostProbableLabelsComeFirst() throws {
        let found = try Classification.best(3, logits: [0, 2, 1, 2], labels: ["a", "b", "c", "d"])
        XCTAssertEqual(found.map(\.label), ["b", "d", "c"])
        XCTAssertEqual(found.map(\.index), [1, 3, 2])
        let all = try Classification.best(9, logits: [0, 2, 1, 2], labels: ["a", "b", "c", "d"])
        XCTAssertEqual(all.map(\.score).reduce(0, +), 1, accuracy: 1e-6)
        XCTAssertEqual(try Classification.best(1, logits: [500, -500], labels: ["a", "b"])[0].score, 1)
        XCTAssertThrowsError(try Classification.best(1, logits: [.nan, 1], labels: ["a", "b"]))
        XCTAssertThrowsError(try Classification.best(1, logits: [.infinity, 1], labels: ["a", "b"]))
    }

    func testTheTableIsThatOfClassify() {
        let predictions = [
            Classification(label: "tabby, tabby cat", score: 0.9266, index: 281),
            Classification(label: "red\u{1B}[31m", score: 0.0314, index: 0),
        ]
        XCTAssertEqual(
            Report.table("cat.jpg", predictions),
            "cat.jpg\n"
                + "   92.7%  ██████████████████████▎   tabby, tabby cat\n"
                + "    3.1%  ▊                         red\\x1b[31m\n")
    }

    func testJSONIsThatOfClassify() {
        let predictions = [Classification(label: "a \"b\" é\n", score: 0.5, index: 3)]
        XCTAssertEqual(
            Report.json("c.jpg", predictions),
            #"{"image": "c.jpg", "predictions": [{"label": "a \"b\" \u00e9\n", "score": 0.5, "index": 3}]}"# + "\n")
        XCTAssertEqual(Report.json("c", error: "no 😀"), #"{"image": "c", "error": "no \ud83d\ude00"}"# + "\n")
    }

    func testArguments() throws {
        let standard = try XCTUnwrap(Arguments.parse(["a.jpg", "b.jpg"]))
        XCTAssertEqual(standard.images, ["a.jpg", "b.jpg"])
        XCTAssertEqual(standard.model, "facebook/convnextv2-tiny-1k-224")
        XCTAssertEqual(standard.top, 5)
        XCTAssertEqual(standard.format, .table)
        let all = ["--model", "m", "--revision=r", "a.jpg", "--top-k", "3", "--dtype", "float16", "--format=json"]
        let given = try XCTUnwrap(Arguments.parse(all))
        XCTAssertEqual([given.model, given.revision, given.dtype], ["m", "r", "float16"])
        XCTAssertEqual(given.images, ["a.jpg"])
        XCTAssertEqual(given.top, 3)
        XCTAssertEqual(given.format, .json)
        XCTAssertNil(try Arguments.parse(["--help"]))
        for (words, part) in [
            ([], "at least one IMAGE"), (["a", "--top-k", "0"], "at least 1, not 0"),
            (["a", "--top-k"], "needs a value"),
            (["a", "--dtype", "int8"], "not int8"), (["a", "--format", "csv"], "table or json"),
            (["a", "--verbos\u{1B}"], "no option --verbos\\x1b"),
        ] {
            XCTAssertThrowsError(try Arguments.parse(words)) { error in
                XCTAssertTrue(error.localizedDescription.contains(part), error.localizedDescription)
            }
        }
    }
}
