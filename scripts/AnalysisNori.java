package node;

import java.util.Map;
import org.apache.lucene.analysis.Analyzer;
import org.apache.lucene.analysis.ko.KoreanAnalyzer;
import org.apache.lucene.analysis.ko.KoreanTokenizer;
import org.opensearch.common.settings.Settings;
import org.opensearch.env.Environment;
import org.opensearch.index.IndexSettings;
import org.opensearch.index.analysis.AbstractIndexAnalyzerProvider;
import org.opensearch.index.analysis.AnalyzerProvider;
import org.opensearch.index.analysis.TokenizerFactory;
import org.opensearch.indices.analysis.AnalysisModule.AnalysisProvider;
import org.opensearch.plugins.AnalysisPlugin;
import org.opensearch.plugins.Plugin;

/** Of OpenSearch's plugin analysis-nori, which is in no repository of Maven's, the analyzer and its tokenizer. */
public class AnalysisNori extends Plugin implements AnalysisPlugin {
  @Override
  public Map<String, AnalysisProvider<AnalyzerProvider<? extends Analyzer>>> getAnalyzers() {
    return Map.of("nori", Nori::new);
  }

  @Override
  public Map<String, AnalysisProvider<TokenizerFactory>> getTokenizers() {
    return Map.of(
        "nori_tokenizer",
        (index, environment, name, settings) -> TokenizerFactory.newFactory(name, KoreanTokenizer::new));
  }

  private static class Nori extends AbstractIndexAnalyzerProvider<KoreanAnalyzer> {
    private final KoreanAnalyzer analyzer = new KoreanAnalyzer();

    Nori(IndexSettings index, Environment environment, String name, Settings settings) {
      super(index, name, settings);
    }

    @Override
    public KoreanAnalyzer get() {
      return analyzer;
    }
  }
}
